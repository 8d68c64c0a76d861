"""The stages of a run, one a file, in the order in which they run."""

STAGE_HELP: dict[str, str] = {
    "prepare": "Read and check the logs; build the weekly panel.",
    "pretrain": "Write user texts; pretrain BERT on them and on the habits they tell.",
    "finetune": "Fine-tune and calibrate the response model; fit the simulators.",
    "backtest": "Score the response model on the reported weeks, beside its peers.",
    "train": "Train the PPO policy on the training simulators.",
    "evaluate": "Judge all policies on held-out simulators and from logged data.",
    "export": "Export the policy as a folder that runs without torch.",
    "report": "Write the report with plots.",
}
"""Each stage in a line; here, so that the command line can show it without importing what stages need."""
