"""The process that this runs in: its siblings, its signals, code of users, archives."""
