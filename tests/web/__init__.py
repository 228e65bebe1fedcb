"""The server and the SDK as parts of web applications."""
