"""The weights and tokenizer of the demo model; see tools/demo_train.py."""
