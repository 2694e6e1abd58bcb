"""The admin API: users, keys, who may change them."""
