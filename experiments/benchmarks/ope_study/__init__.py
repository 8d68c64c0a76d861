"""The study of offline estimates: a market with known values, logs of it, and how well they are estimated."""
