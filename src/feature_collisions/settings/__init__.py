"""All settings: dataclasses and the rules of their values."""
