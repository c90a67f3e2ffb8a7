"""SimCLR as a config of MMSelfSup 1.0: its base configs merged, in one file."""

view = [
    dict(type="RandomResizedCrop", size=224, backend="pillow"),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomApply",
        transforms=[
            dict(type="ColorJitter", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        ],
        prob=0.8,
    ),
    dict(
        type="RandomGrayscale", prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)
    ),
    dict(type="RandomGaussianBlur", sigma_min=0.1, sigma_max=2.0, prob=0.5),
]
model = dict(
    type="SimCLR",
    backbone=dict(type="ResNet", depth=50, norm_cfg=dict(type="SyncBN")),
    neck=dict(
        type="NonLinearNeck",
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
        num_layers=2,
        with_avg_pool=True,
    ),
    head=dict(type="ContrastiveHead", temperature=0.1),
)
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    dataset=dict(
        type="mmcls.ImageNet",
        data_root="data/imagenet/",
        data_prefix=dict(img_path="train/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="MultiView", num_views=2, transforms=[view]),
            dict(type="PackSelfSupInputs"),
        ],
    ),
)
optim_wrapper = dict(optimizer=dict(type="LARS", lr=4.8, momentum=0.9, weight_decay=1e-6))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, begin=0, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=190, begin=10, end=200, convert_to_iter_based=True),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200)
