"""Programs that the persist tests run as processes of their own."""
