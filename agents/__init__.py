"""Policies: PPO, baselines, pacing, rollout, export and serving."""
