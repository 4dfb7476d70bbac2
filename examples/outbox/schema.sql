-- The tables of a shop, in the database of queued.
CREATE TABLE products (
    id    text PRIMARY KEY,
    stock integer NOT NULL CHECK (stock >= 0)
);

CREATE TABLE orders (
    id       uuid PRIMARY KEY, -- made by the client, so that a repeated order is stored once
    product  text NOT NULL REFERENCES products,
    quantity integer NOT NULL CHECK (quantity > 0)
);

CREATE TABLE shipments (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id   uuid NOT NULL REFERENCES orders,
    shipped_at timestamptz NOT NULL DEFAULT now()
);
