"""A survey of people: a questionnaire in one file, and what its responses say (docs/survey.md)."""
