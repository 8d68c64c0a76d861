"""The market: logs, offers, population, response dynamics, budget, Gymnasium environments."""
