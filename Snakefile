"""The workflow from the root of the checkout; workflow/Snakefile is its table of contents."""


include: "workflow/Snakefile"


# The default target of an included file is not that of the file that includes it.
if MAIN:
    workflow.default_target = "all"
