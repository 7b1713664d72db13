"""How far scores can be trusted: intervals, hubs, membership and stretches of a clip."""
