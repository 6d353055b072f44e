"""What a text about a person says: its words, tastes, claims and denials. English only."""
