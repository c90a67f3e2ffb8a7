"""MAE as a config of MMSelfSup 1.0: its base configs merged, in one file."""

model = dict(
    type="MAE",
    backbone=dict(type="MAEViT", arch="b", patch_size=16, mask_ratio=0.75),
    neck=dict(
        type="MAEPretrainDecoder",
        patch_size=16,
        embed_dim=768,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
    ),
    head=dict(
        type="MAEPretrainHead",
        norm_pix=True,
        patch_size=16,
        loss=dict(type="MAEReconstructionLoss"),
    ),
)
train_dataloader = dict(
    batch_size=512,
    dataset=dict(
        type="mmcls.ImageNet",
        data_root="data/imagenet/",
        data_prefix=dict(img_path="train/"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomResizedCrop", size=224, scale=(0.2, 1.0), interpolation="bicubic"),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSelfSupInputs"),
        ],
    ),
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, begin=0, end=40, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=260, begin=40, end=300, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=300)
