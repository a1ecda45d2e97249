"""Where the bytes of values lie: a local directory, or a store behind a URL.  Each answers the Protocol of `base`."""
