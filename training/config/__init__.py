"""What a user may say: settings with their rules, flags, sizes, and the errors that answer."""
