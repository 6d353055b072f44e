"""Everything that ranks without a profile encoder: RecBole models, text views of the history, simple scorers."""
