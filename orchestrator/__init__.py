"""ptq: train prompts, prefixes and P-tuning on frozen language models, as a queue that a team shares."""

__version__ = "0.1.0"
