"""A run of Jina Finetuner, as its documentation shows the call."""

import finetuner

run = finetuner.fit(
    model="resnet-base",
    train_data="products.csv",
    eval_data="products_test.csv",
    loss="TripletMarginLoss",
    miner="TripletMarginMiner",
    miner_options={"type_of_triplets": "semihard"},
    freeze=True,
    output_dim=512,
    model_options={"pooling_layer": {"p": 3, "eps": 1e-6}},
    optimizer="Adam",
    learning_rate=1e-4,
    epochs=10,
    batch_size=64,
    num_items_per_class=4,
)
