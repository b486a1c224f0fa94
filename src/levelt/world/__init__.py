"""The synthetic world: lexicon, judgment tasks, facts and the text that is made of them."""
