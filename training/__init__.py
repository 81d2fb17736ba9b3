"""The training programs, one file a program. Importing this package loads nothing."""
