"""Run directories: where they are, who works in one, and the records they hold."""
