"""Copy sessions between drivers, and export and import them as lines."""
