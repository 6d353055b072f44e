"""The explorer: a local page that shows finished results, and how the ranking changes if a profile is edited."""
