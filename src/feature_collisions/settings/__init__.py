"""What a user may set: every dataclass and the rules its values keep."""
