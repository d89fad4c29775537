"""Large tables whose step costs only the rows that it touches."""
