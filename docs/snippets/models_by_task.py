import vlkd_cli

for row in vlkd_cli.describe_models(task="image-to-image"):
    print(row["name"], row["output_dim"])
for option in vlkd_cli.list_model_options("resnet-base")["options"]:
    print(option["key"], option["default"])
