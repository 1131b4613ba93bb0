"""What a relay shows to people and their monitoring: home page, `/debug/`, metrics."""
