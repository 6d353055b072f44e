"""The explorer: finished results on a local page, where a person reads, edits and sees what changes."""
