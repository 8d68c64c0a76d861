"""The market: logs, offers, population, response dynamics, budget, Gymnasium environments.

Importing it registers the environments with Gymnasium, which loads no plugins by itself since version 1.
"""

from envs import registration as registration
