"""lgekit: text-supervised scar detection in cardiac LGE MRI, a teaching and ablation workbook.

For research and teaching only; not a medical device.
"""

__version__ = "0.1.0"
