import vlkd_cli

found = vlkd_cli.synthesize("synthesize", "data/relations", overrides=["synthesis.relations=20"])
print(found["relations"], found["counts"], found["share_of_negative_margins"])
