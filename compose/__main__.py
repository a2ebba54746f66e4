"""`python -m compose` is `fedmq`."""

from compose.cli import main

main()
