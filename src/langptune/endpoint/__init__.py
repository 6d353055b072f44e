"""Servers with OpenAI's chat API: asking one (``client``), and starting one for a local model (``serve``)."""
