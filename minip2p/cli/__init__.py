"""The command line of minip2p."""
