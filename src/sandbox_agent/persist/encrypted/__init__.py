"""Encryption around any driver."""
