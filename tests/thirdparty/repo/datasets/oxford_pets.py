import math
import os
import pickle
import random
from collections import defaultdict

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import mkdir_if_missing, read_json, write_json


@DATASET_REGISTRY.register()
class OxfordPets(DatasetBase):
    dataset_dir = "oxford_pets"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.anno_dir = os.path.join(self.dataset_dir, "annotations")
        self.split_path = os.path.join(self.dataset_dir, "split_zhou_OxfordPets.json")
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)

        if os.path.exists(self.split_path):
            train, val, test = self.read_split(self.split_path, self.image_dir)
        else:
            train, val = self.split_trainval(self.read_data("trainval.txt"))
            test = self.read_data("test.txt")
            self.save_split(train, val, test, self.split_path, self.image_dir)

        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            preprocessed = os.path.join(self.split_fewshot_dir, f"shot_{num_shots}-seed_{cfg.SEED}.pkl")
            if os.path.exists(preprocessed):
                print(f"Loading preprocessed few-shot data from {preprocessed}")
                with open(preprocessed, "rb") as file:
                    data = pickle.load(file)
                    train, val = data["train"], data["val"]
            else:
                train = self.generate_fewshot_dataset(train, num_shots=num_shots)
                val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
                print(f"Saving preprocessed few-shot data to {preprocessed}")
                with open(preprocessed, "wb") as file:
                    pickle.dump({"train": train, "val": val}, file, protocol=pickle.HIGHEST_PROTOCOL)

        train, val, test = self.subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def read_data(self, split_file):
        items = []
        with open(os.path.join(self.anno_dir, split_file)) as file:
            for line in file:
                name, label, _, _ = line.split()
                breed = "_".join(name.split("_")[:-1]).lower()
                path = os.path.join(self.image_dir, f"{name}.jpg")
                items.append(Datum(impath=path, label=int(label) - 1, classname=breed))
        return items

    @staticmethod
    def split_trainval(trainval, p_val=0.2):
        print(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
        by_label = defaultdict(list)
        for item in trainval:
            by_label[item.label].append(item)
        train, val = [], []
        for items in by_label.values():
            n_val = round(len(items) * p_val)
            random.shuffle(items)
            val.extend(items[:n_val])
            train.extend(items[n_val:])
        return train, val

    @staticmethod
    def save_split(train, val, test, filepath, path_prefix):
        def rows(items):
            return [(os.path.relpath(item.impath, path_prefix), item.label, item.classname) for item in items]

        write_json({"train": rows(train), "val": rows(val), "test": rows(test)}, filepath)
        print(f"Saved split to {filepath}")

    @staticmethod
    def read_split(filepath, path_prefix):
        print(f"Reading split from {filepath}")
        split = read_json(filepath)
        return tuple(
            [Datum(impath=os.path.join(path_prefix, path), label=label, classname=name) for path, label, name in items]
            for items in (split["train"], split["val"], split["test"])
        )

    @staticmethod
    def subsample_classes(*args, subsample="all"):
        assert subsample in ["all", "base", "new"]
        if subsample == "all":
            return args
        labels = sorted({item.label for item in args[0]})
        m = math.ceil(len(labels) / 2)
        print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
        kept = {label: new for new, label in enumerate(labels[:m] if subsample == "base" else labels[m:])}
        return [
            [Datum(impath=i.impath, label=kept[i.label], classname=i.classname) for i in items if i.label in kept]
            for items in args
        ]
