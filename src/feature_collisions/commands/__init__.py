"""The commands of train.py and evaluate.py."""
