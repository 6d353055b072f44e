"""Servers with OpenAI's chat API: asking one (``client``), and starting one for a local model (``serve``)."""

CLIENT = ("langptune.endpoint.client", "langptune.endpoint.answers")
"""Modules that a job imports only if its model is an endpoint (``without`` of ``provenance.code_files``)."""
