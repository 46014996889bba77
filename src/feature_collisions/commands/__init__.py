"""What train.py and evaluate.py run."""
