"""Built-in task `mnist`: handwritten digits, LeNet-5 with 44,426 parameters.

The 60,000 training images are dealt to any number of devices with class shares from Dirichlet(0.5); the 10,000 test
images are common. No sample ships with the project: `fedpruneshare data get mnist` brings the data.
"""

from __future__ import annotations

from edge_client.datasets.image_sets import MNIST
from edge_client.tasks import fashion_mnist
from edge_client.tasks.images import ImageData, Normal

name = "mnist"

# Mean and standard deviation of all training pixels, scaled to 0..1.
NORMAL = Normal((0.1307,), (0.3081,))

build_model = fashion_mnist.build_model


_data = ImageData(MNIST, NORMAL)
load_train, load_test, data_form = _data.load_train, _data.load_test, _data.data_form
