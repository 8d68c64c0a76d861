"""How real the simulated weeks look: the same measures of real and of simulated users, side by side."""
