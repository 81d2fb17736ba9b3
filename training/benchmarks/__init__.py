"""What a run costs and what it reaches, measured beside others; nothing imports from here."""
