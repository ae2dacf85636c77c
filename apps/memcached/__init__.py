"""A server that speaks memcached's text protocol, and is still warm after a restart or a kernel upgrade."""
