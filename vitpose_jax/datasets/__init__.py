"""Reading datasets: annotations, boxes, images."""
