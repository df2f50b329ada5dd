"""Who may ask, how much and when: keys, rates, turns, hosts and slow connections."""
