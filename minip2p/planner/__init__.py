"""Instructions: a sentence such as "make the cat a tiger" becomes a `Plan`, which `Pipeline.edit` takes as a target."""
