"""Records become rows: JSON, Arrow and Avro, held to one contract; what breaks it is refused."""
