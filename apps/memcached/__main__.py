"""``python -m apps.memcached``: see :mod:`apps.memcached.command`."""

from apps.memcached.command import main

if __name__ == "__main__":
    main()
