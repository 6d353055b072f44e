"""Libraries behind baselines, held to what this benchmark asks of them."""
