"""Services of sandboxes on loopback, recorded from their real clients; what they run is real."""
