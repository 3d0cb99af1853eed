"""What a run is made of: the clock, the state that methods keep, the board they post on, the record of what ran."""
